"""What a container gets inside, whether an app runs in it or is staged: environment, limits, egress rules, the start script.

Pure: values of a message become values of the container manager.
"""
