"""Hosts that a table of others names: the places of its URIs, why a request failed, which hosts are dead."""
