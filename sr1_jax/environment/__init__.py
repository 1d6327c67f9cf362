"""What a policy acts on: episodes, trajectories, tools and the pool that runs them."""
