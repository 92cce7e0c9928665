"""What each page is fed: plain dicts of ready text and drawn charts. Every query of the board is in here.

A presenter takes who asks, what the URL says and `now`, and returns one dict whose shape its template names in its
first line.
"""
