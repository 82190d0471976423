"""From numbers to what people read and send."""
