"""Images with boxes, and instance masks where they have them: COCO, YOLO, Pascal VOC."""
