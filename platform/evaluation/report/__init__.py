"""Tables, images and the HTML report of an evaluation."""
