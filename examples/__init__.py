"""Programs on ringtls and on libraries of protocols: short, whole, and tested."""
