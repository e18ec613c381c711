"""Evidence that is counted from everybody's events as they come, and how it joins the model's score.

Names: I items counted, M neighbours of one, K last items of a user, C candidates, F features,
V items of the model, D width.
"""
