"""The tasks: what is trained, evaluated and shipped."""
