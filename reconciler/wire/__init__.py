"""Each document (YAML, etcd's JSON, the plan, the configuration) to and from values, with its limits and its schema."""
