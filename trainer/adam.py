"""Adam, each variable's update in one pass over its memory."""

import keras
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """Keras's Adam by TensorFlow's own kernel, where Keras makes a dozen passes. Its variables are Keras's."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Changes one variable and its two moments."""
        index = self._get_variable_index(variable)
        moments = self._momentums[index].value, self._velocities[index].value
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=tf.pow(self.beta_1, step),
            beta2_power=tf.pow(self.beta_2, step),
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
