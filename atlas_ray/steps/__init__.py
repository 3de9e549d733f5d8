"""The steps of a round, a file each. Each reads what the one before it wrote in the workspace, skips what is finished, and can be
run alone.

ingest -> train -> predict -> evaluate -> prioritize -> annotate -> merge -> train (the next round's networks)
"""
