"""What the APIs answer, as the types of the dicts that are encoded; the published schemas are made of them.

At run time they are plain dicts: nothing is checked while a request is answered.
"""
