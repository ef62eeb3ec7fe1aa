"""``python -m bench``: ringtls measured next to other TLS servers, in one run on one machine."""
