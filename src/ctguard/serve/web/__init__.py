"""The review page: work list, viewer, readings, audit and reader studies, as one FastAPI application."""
