"""Textual inversion: images as pseudo-words in the token space of a CLIP text encoder.

pair = OpenClipPair.load("ViT-L-14", "openai")
model = zoo.create_model("searle_xl_vit_l14", pretrained=True, accept_licence=True)
query = pair.compose("a photo of $ that is red", model.project_images(images, pair))    # text features (B, E)
"""
