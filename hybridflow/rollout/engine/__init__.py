"""One SGLang engine in its own process: arguments, messages, memory and the Ray actor around it."""
