"""What the tabs show, as plain Python that knows no Gradio."""
