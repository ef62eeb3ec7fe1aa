"""``ringtls proxy``: a TLS terminator that tells the truth about ends."""
