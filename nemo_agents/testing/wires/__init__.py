"""The wires of the scripted provider: requests read into `Asked`, replies written plain and as events."""
