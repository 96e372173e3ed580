"""Weights on disk, a file for each form: ours, Lightning's, DeepSpeed's, and bare state dicts as Meta publishes them.

The door is `frisket.checkpoint`; nothing else imports this room's files.
"""
