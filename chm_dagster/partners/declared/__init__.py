"""Partners by configuration: what a REST or GraphQL API of run histories looks like, said in YAML."""
