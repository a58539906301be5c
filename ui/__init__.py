"""The browser interface: one module a tab below tabs/, what they show below state/, scripts and styles in assets/."""
