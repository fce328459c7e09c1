"""From action labels to a corpus: units, their senses, related concepts, and what a language model adds."""
