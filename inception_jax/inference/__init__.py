"""What every trained network does with pictures, whatever it was loaded from."""
