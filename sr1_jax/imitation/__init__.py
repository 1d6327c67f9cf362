"""Traces to imitate, written from questions, their answers and a search engine; no model."""
