"""Ten texts of several kinds to go on with."""

TEXTS = (
    "The capital of France is",
    "Once upon a time there was a small robot who lived at the edge of a forest. One morning",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Water boils at 100 degrees Celsius at sea level. On a high mountain",
    "Dear Ms Alvarez,\n\nThank you for your letter of 14 March 2021. We are sorry to hear that",
    "List of the planets by their distance from the sun:\n1. Mercury\n2.",
    "La Révolution française commença en 1789 lorsque",
    "Q: A train leaves at 9:45 and arrives at 12:10. How long does it take?\nA:",
    '{"name": "Ada", "born": 1815, "field": "mathematics"}\n{"name": "Alan", "born":',
    "The three branches of the government of the United States are the legislative, the executive and",
)
