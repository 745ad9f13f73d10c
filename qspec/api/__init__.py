"""The Python API: tensors in and out, the same loop and the same engines as the servers, in one process.

``qspec`` itself exports the public names, and loads torch only when one of them is used. A model is used by one thread
at a time.
"""
