"""The frozen encoder of text and images, and the feature files made with it or brought along."""
