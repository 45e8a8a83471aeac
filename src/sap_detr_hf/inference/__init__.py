"""From images, files and videos to detections."""
