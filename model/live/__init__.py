"""Evidence counted from everybody's events as they come, and how it joins the model's score.

Names: I items counted, M neighbours of one, K last items of a user, S columns of numbers an item,
H half-lives, P most popular items; C candidates, F features of one, X numbers of a request's
context; V items of the model, R rows of the catalogue, D width.
"""
