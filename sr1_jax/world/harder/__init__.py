"""The harder fictional world: rumours, corrections, namesakes, and facts that nobody wrote down."""
