"""Recipes for `proxyless retrain`, as YAML files beside this one."""
