"""The door: `frisket VERB YAML… key=value…`; one module per verb, each with `run(files, overrides) -> int`."""
