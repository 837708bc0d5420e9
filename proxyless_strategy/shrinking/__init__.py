"""`proxyless shrink`: a pretrained model of timm made smaller, and compared with itself."""
