"""The command ``msa``: one module per group of commands; each adds its own parser and imports what it needs late."""
