"""HTTP: the agent's own interface, and FleetLock. Called by `cli`; knows nothing of the agent but what it publishes.

It is imported only by who serves: uvicorn, Starlette and prometheus_client are a third of a second.
"""
