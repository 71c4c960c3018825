"""etcd: typed reads at one etcd revision and guarded writes. Called by the agent, the command line and the web part."""
