"""Text becomes documents, tokens, streams and batches; durable storage."""
