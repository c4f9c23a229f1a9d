"""The types of the APIs' answers, from which the published schemas are made.

At run time answers are plain dicts, and nothing validates them.
"""
