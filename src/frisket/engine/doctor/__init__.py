"""What could stop a run hours later, looked at before it waits in a queue: a file for each family of checks.

A check is a function that is given a Plan and returns what it saw, in a line; it raises UserError with cause and mend.
`frisket.engine.doctor.run` lists them; a plug-in's own stand in its CHECKS. Source: our choice.
"""
