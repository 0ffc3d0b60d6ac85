"""Open models: reading, changing, freezing, selecting and re-plumbing parameters.

One file for each verb. All of them work on any object graph, eagerly and inside of
transforms, check everything before they change anything, and name what is wrong by
its path. What is not used costs nothing.
"""
