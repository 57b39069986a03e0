"""The API shapes that the gateway serves: what each is like, and how one is told in another."""
