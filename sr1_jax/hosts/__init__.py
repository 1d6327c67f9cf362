"""What the processes of a cluster tell each other from host to host, past their devices."""

from sr1_jax.hosts.channel import exchange

__all__ = ["exchange"]
