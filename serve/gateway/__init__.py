"""The HTTP gateway: routes by caller, and what all of them share (requests, errors, deadlines, auth)."""
