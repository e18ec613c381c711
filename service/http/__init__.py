"""Requests and answers: routes, schemas, problems, keys, and the page."""
