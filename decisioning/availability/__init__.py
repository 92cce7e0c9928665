"""Reads stay up while the database or one of the portal's parts is away."""
