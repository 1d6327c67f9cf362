"""The harder fictional world: rumours, corrections, and facts that nobody wrote down."""
