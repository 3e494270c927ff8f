"""Plug-ins: our models as models of other people's harnesses, which ask them by their own prompts and rules.

A harness is imported by its own plug-in alone. What these share is `asking`: conversations in, answers out,
many at a time, by the service of `server` without its sockets.
"""
