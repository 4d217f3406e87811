"""A request to forget, from documents to a report: the steps of ``uld forget``."""
