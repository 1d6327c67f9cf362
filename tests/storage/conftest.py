"""A storage service for the tests of this folder."""

from bucket_fixtures import bucket, no_pauses  # noqa: F401
