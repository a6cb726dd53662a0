"""What an answer must look like, as a grammar (GBNF) to sample by: a schema, an expression, a list, or one's own."""
