"""The bridge to ComfyUI: the only place that imports comfy, folder_paths and server."""
