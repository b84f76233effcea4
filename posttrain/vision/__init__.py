"""Visual tokens in small: drawn pictures with an exact reward, their tokenizers, and text over visual tokens."""
