"""What a model is asked for besides text: labels, entities, embeddings, an order of relevance."""
